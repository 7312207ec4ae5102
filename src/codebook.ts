// The universal codebooks, data only. Made by `npx tsx bench/codebooks.ts`; never edited by hand.
//
//   base64    f16 [256, channels], little-endian; the codeword of code c is row c
//   checksum  FNV-1a, 32 bits, of those bytes; part of the format: coded bytes mean nothing under another codebook
//
// Row c + 128 is the exact negation of row c. Rows 0 to 127 have a positive first channel and ascend.

export interface Codebook {
  readonly channels: 8 | 4 | 2;
  readonly checksum: number;
  readonly base64: string;
}

export const codebooks: Readonly<Record<'nsn1' | 'nsn2' | 'nsn4', Codebook>> = {
  nsn1: {
    channels: 8,
    checksum: 0xa74dde4d,
    base64:
      'Cx4iP7m6nbaINJi0/7uXuUYk6DbSPXa0BrjJu0e8RTtoJaS05S6oL6FA4bQlMwsx5CVzNCo0ij5oPUS5ZbibOLAm2DpQPGCy97t6oQg8QL1DKqGwFD54uwA5' +
      'Wbsfsma8AivftMcza7l5PDG+yLstOhQsyT9rOlyyJrk2umQ1fDLsLLawV7kctI20ADKBM3A0yi0lPvEx9T1EulQzYLjwsOItO7weO3y2njwYPf63Krr2LeW9' +
      'rzd7sKu2zr0IO6WyZi6jvOC3F7PtIVE+/DyiNpsucDgiPDa0ezXwv703ajUSL2448zigvoq8ui3Qtcg6Ji8cPBu4NzmhMO88zj3FOOgvpDeZvykourB9u++y' +
      '3LopMKEwajyZLlk5YTrMvho6YTEQuHq4LzcUvP6rlD51PJsxVLZ1sYY9h71+OmK5Vbm8MZs8PzxvtlM8AjMvPXUm/DGVuDg5bTv8PKE66TxpNQsy+rriOJa+' +
      'Uq0KPVS3/TeXMvk8Cr4mOiE0KjrjMzK69TKcMV80tzHULY88PzB0rxczKbuStm61qz36uGO1LbxaM0q6upqsuYcqZDhPOw6/uDNtOog9ib31ONE00biLN9Qz' +
      'Ojroul2+2TiHNfq2jzsbNDg4ebfuOm+4/7M6OAu/MDTGOZq4ZLznvAkxFD0jOn40azQttyY4Vz5wPOK52rqFNHE2nbu3vOa05jt2umi8njS/N8C9/TAtO1W9' +
      'faxqO900dbQruM06zjwMPpioPDtBNcsxWyyYOHi44T0hvB098jVRNl6q7CSzPZWlRTpyvhM2hTOJNL63dqqBsbc3hbEnNre8sKSCvHe9xbfpuT0wSDYfNCO9' +
      'AL5vNz4kqzvGuHk2nbFvv1O2STxJONq407CKNsWwfLg5uhKjF76vPWk6kDZAOC68aC8sNRi6Zr8CN7Q2v7C9OBQ90rypuEw0IzrlNoQ+4jYeu1I42zs6nqe5' +
      'Gzfipgm9prkSvNE5Fb3BOB43zT1ruiS4Hb2Irjw2frpCN9M5mj1+OQg9PzwItWqwhDebP8C6rbA/uJE1yrDwO403qbchs4+3fr09MYG4Zb6sNxG7Kz1Mupk8' +
      'hbPyOt00rTeDvjM57C89tm85xLyaOPM3xLpxKd484a2FNB21KD8IOKS17rz7veEze7uxuhK1JzigPhQ41jT3O+O01ruTODY4cL2xvHerW7PRuPMeX709OEQ3' +
      'P7wrN/48XLerPXcnTTjHOrE+cDwVI5G6Cq3muFE4KTk3NTk5NbZJvWI+gLN+OCI5VrqzuvS1AT8GOrewgjhUNC63qj3JKX66VbyVvJI427euuPy3WzxNMS47' +
      'zD2cOBW4Ar6CPV0z9jZTu/KvvTj7Lhi6SLsZuGq8RLnNPcY4CjiyOP+4F7WDtwc28j/LOFe7FK4CKBosIzdkvrm8EjmfO1SnYS2nPba9JqkVuRw5Kzoxt2U3' +
      'WyZdtaCsqS41OZ87azyvu5+6B7Jfu4G7XTlIOHk4FLmMu7o+vrl2s545Oi5YOre/8DOJOIg2FbqkOaIrBDEbPJOxvSP9vwsztDlHuMo7TjhkvZa5/7osubo5' +
      'Gr0KrpE4dDnTuLc947bzOUY9Lq3hvUWrhbyMMNOsATq7uecz9b6duJW7tDkitgI69re8KKYsub75tig8gbkXOnK9er6zsf83S7hFNoY1FzpkvGa467rouTQ2' +
      'qTLkPTg6TLVgNWa8hj5qM/C62jVdOsG8WS8BK+g24LztL1g9YzpQvtyuADq2vSItsi6lNIk6IrIwLss9vLb2Nh8+PraSOgg9UDwet9m5fTuFO5k0lDr/rou4' +
      'IjLcu7+/5rRktpQ6Aq2+PF4n+R62sbI+BTyeOvquCq6juc49Dj04O6q0sDoeutU8JblRvXc3/DfjNLE6RDxMNVY9yi32I+Y5nTztOt4t/TITvGGsRa/jvdQz' +
      '8jrzOMoyu7mpNU09ATSpPU079LDgN9o/KzJZOau0MrNlOwi4ir7PKG68nDkyNke3hztxNo85ZTCKMJw64LVpv487JT9lNNo66jRnNSI4XLqSO180daymtlMv' +
      '2btjunq+rzuPPHY19SkGvQy1nLxROQE8TL0oNZM4DLYLPCExrLsMPHE6uLHbtUaw5jRRP3u6DTw8urw+Z7RLM2KtArw2tx08xb01MAE8CC4Eu3q4f7UjPPAx' +
      'BT5SOVq7fTqIuPk0Rjy2OAi/p7emsRapaDlXOlY81TvWuzM5DzwQNme2eDxmPJS3vjpjMAWx7brhOEG+cTyILUi8rDpTvUq26rYUO6w8CamgPHE1fTl0rBi3' +
      'iT20PGq9grCYvKwqaDeDtY+5tzyuNv0sQTy1LK++gbbYOcg8DLfEunU9IzQAtrk57TkAPV22IjzZO6g8ALldNDS1Pz2EsHM+ZqyFM3c5mzrPuGw9V7URt/I3' +
      'jT27thO8mK16PQGxKio0OSG6Mj0yON06pD0svW81rjCOOss5NyysONE9bzmCuRg4Y7kDOYO75bnXPcGwAbhytkQ2nD3tuoE2Ez5zOri5pLotOxszcLRuuh8+' +
      'R7eZLD+83jtHvLQyB65LPiu6YLTGuMyvnjSZPQwxUj6DOjo0WTsDvWWzhDd7tVg+Izx2MBa2Tjsktfg55TlnPlOy5zsttQa5Xrz0LaM3eT4Qq5u4ZjpFOZc6' +
      '/jayueA+O7utuJKvBLNUtQS8xzgTP58wF7xOMjgWXbtVOPi5fT+wNEOz47tFvBQxJqXoJNA/czpDOq0tNzUMKPC5V7ILniK/uTqdNoi0mDT/O5c5RqTottK9' +
      'djQGOMk7RzxFu2ilpDTlrqivocDhNCWzC7HkpXO0KrSKvmi9RDllOJu4sKbYulC8YDL3O3ohCLxAPUOqoTAUvng7ALlZOx8yZjwCq980x7NrOXm8MT7IOy26' +
      'FKzJv2u6XDImOTY6ZLV8suystjBXORw0jTQAsoGzcLTKrSW+8bH1vUQ6VLNgOPAw4q07PB67fDaevBi9/jcqOvat5T2vt3swqzbOPQi7pTJmrqM84DcXM+2h' +
      'Ub78vKK2m65wuCK8NjR7tfA/vbdqtRKvbrjzuKA+ijy6rdA1yLomrxy8Gzg3uaGw77zOvcW46K+kt5k/Kai6MH077zLcOimwobBqvJmuWblhusw+GrphsRA4' +
      'ejgvtxQ8/iuUvnW8m7FUNnUxhr2HPX66YjlVObyxm7w/vG82U7wCsy+9dab8sZU4OLltu/y8obrpvGm1C7L6OuK4lj5SLQq9VDf9t5ey+bwKPia6IbQquuOz' +
      'Mjr1spyxX7S3sdStj7w/sHQvF7MpO5I2bjWrvfo4YzUtPFqzSjq6Gqw5h6pkuE+7Dj+4s226iL2JPfW40bTROIu31LM6uug6XT7ZuIe1+jaPuxu0OLh5N+66' +
      'bzj/Mzq4Cz8wtMa5mjhkPOc8CbEUvSO6frRrtC03JrhXvnC84jnaOoW0cbadO7c85jTmu3Y6aDyetL+3wD39sC27VT19LGq73bR1NCs4zbrOvAy+mCg8u0G1' +
      'y7FbrJi4eDjhvSE8Hb3ytVG2XirspLO9lSVFunI+E7aFs4m0vjd2KoExt7eFMSe2tzywJII8dz3FN+k5PbBIth+0Iz0APm+3PqSru8Y4ebadMW8/UzZJvEm4' +
      '2jjTMIq2xTB8ODk6EiMXPq+9abqQtkC4Ljxoryy1GDpmPwK3tLa/ML24FL3SPKk4TLQjuuW2hL7ith47Urjbuzoepzkbt+ImCT2mORI80bkVPcG4HrfNvWs6' +
      'JDgdPYguPLZ+OkK307mavX65CL0/vAg1ajCEt5u/wDqtMD84kbXKMPC7jbepNyEzjzd+PT2xgThlPqy3ETsrvUw6mbyFM/K63bStt4M+M7nsrz02b7nEPJq4' +
      '87fEOnGp3rzhLYW0HTUovwi4pDXuPPs94bN7O7E6EjUnuKC+FLjWtPe74zTWO5O4NrhwPbE8dytbM9E4855fPT24RLc/PCu3/rxcN6u9d6dNuMe6sb5wvBWj' +
      'kToKLeY4UbgpuTe1Obk1Nkk9Yr6AM364IrlWOrM69DUBvwa6tzCCuFS0LjeqvcmpfjpVPJU8krjbN644/DdbvE2xLrvMvZy4FTgCPoK9XbP2tlM78i+9uPuu' +
      'GDpIOxk4ajxEOc29xrgKuLK4/zgXNYM3B7byv8u4VzsULgKoGqwjt2Q+uTwSuZ+7VCdhrae9tj0mKRU5HLkrujE3Zbdbpl01oCyprjW5n7trvK87nzoHMl87' +
      'gTtduUi4ebgUOYw7ur6+OXYznrk6rli6tz/ws4m4iLYVOqS5oqsEsRu8kzG9o/0/C7O0uUc4yrtOuGQ9ljn/Oiw5urkaPQoukbh0udM4t73jNvO5Rr0uLeE9' +
      'RSuFPIyw0ywBurs557P1Pp04lTu0uSI2Arr2N7yopqy5Pvk2KLyBORe6cj16PrMx/7dLOEW2hrUXumQ8ZjjrOug5NLapsuS9OLpMNWC1ZjyGvmqz8DratV26' +
      'wTxZrwGr6LbgPO2vWL1julA+3C4AurY9Iq2yrqW0iboiMjCuy728Nva2H74+NpK6CL1QvB432Tl9u4W7mbSUuv8uizgistw7vz/mNGQ2lLoCLb68Xqf5nrYx' +
      'sr4FvJ66+i4KLqM5zr0OvTi7qjSwuh461bwlOVE9d7f8t+O0sbpEvEy1Vr3Krfaj5rmdvO263q39shM8YSxFL+M91LPyuvO4yrK7Oam1Tb0BtKm9Tbv0MOC3' +
      '2r8rslm5qzQyM2W7CDiKPs+objycuTK2RzeHu3G2j7llsIqwnLrgNWk/j7slv2W02rrqtGe1IrhcOpK7X7R1LKY2U6/ZO2M6ej6vu4+8drX1qQY9DDWcPFG5' +
      'AbxMPSi1k7gMNgu8IbGsOwy8cbq4Mds1RjDmtFG/ezoNvDw6vL5nNEuzYi0CPDY3HbzFPTWwAbwIrgQ7ejh/NSO88LEFvlK5Wjt9uog4+bRGvLa4CD+nN6Yx' +
      'FilouVe6VrzVu9Y7M7kPvBC2ZzZ4vGa8lDe+umOwBTHtOuG4QT5xvIitSDysulM9SjbqNhS7rLwJKaC8cbV9uXQsGDeJvbS8aj2CMJg8rKpot4M1jzm3vK62' +
      '/axBvLWsrz6BNti5yLwMN8Q6db0jtAA2ubntuQC9XTYivNm7qLwAOV20NDU/vYQwc75mLIWzd7mbus84bL1XNRE38reNvbs2EzyYLXq9ATEqqjS5IToyvTK4' +
      '3bqkvSw9b7WusI66y7k3rKy40b1vuYI5GLhjOQO5gzvlOde9wTABOHI2RLacve06gbYTvnO6uDmkOi27G7NwNG46H75HN5msPzzeu0c8tLIHLku+KzpgNMY4' +
      'zC+etJm9DLFSvoO6OrRZuwM9ZTOEt3s1WL4jvHawFjZOuyQ1+LnluWe+UzLnuy01BjlePPSto7d5vhArmzhmukW5l7r+trI54L47O604ki8EM1Q1BDzHuBO/' +
      'n7AXPE6yOJZdO1W4+Dl9v7C0QzPjO0U8FLEmJeik0L9zukO6ra03tQyo8DlXMg==',
  },
  nsn2: {
    channels: 4,
    checksum: 0xf72c3f05,
    base64:
      'mSNML2G59rd4JUbAdD7SMswmcD2oMD6xCykXtiIu9blzKUI3Czn6PI4pSbnZNrFAKSo6u6g9CLlDKtXA2S/XO2sq4brGOOKydCs6uae6Tj4qL7a/6TplvTYv' +
      'urkOu2k12y/ENVEtlqklMHw6kEBJryowuDuKvdi3jDBrPoC7yL3JMao2sDQjuy4yZ7d0POs8NjJOstEws76dMpy9iLzXvRQzZ7l0wGm9SDMOOtk4wzZuM2g7' +
      '7rb8udAzszTqPek4CjT0PWQ8nDQNNMe82K+iPLA0yi/FvcUsHzW5PRw/EL19NVQ9iq3/OoY1gqlNOri0rTXGMe+6pzyuNd00t8CfO+M1RzxfLS5AATagNLI9' +
      'n7p2NmkwHzlEwec2+Dq5vLE/6Daevi285jlgN2m/Qjjcs2o3AzTmPEVAszfiwNO3gLLlN+q48DqQvAA47aEZuGI1FTgNObzAp7kZOPi0/zKSPS04mK4SP1a/' +
      'Lzh2vfa2c7g9OPS3akBTLEA4P7yepxW9dDgWttQwDTiiOMo9QLvYLbY43rpgvSy2GTnauAi+MjooOU9ALDllPS45vb9bv9KzOzmfPFg5i7lJOZ68Izg9OF45' +
      'dDbrtaq9gzklst+8ibyJOZ678T/tPZs5Hjg0uUWztjluPl81or/JOf61JrhouNg5YLjTPHoz6zk+uZozRLQQOig/K7QkuEE61702uQRAeTpcOge6mzmEOiQ7' +
      'HixiLK06MLymt1UyrjqKQFA7WLbsOioz/DBIuPI6RT4Gv0A7+DpJN0AbPDwMO9M5jb2pvxY7jzkePUuuGTvDOto7mzx0O79AvLb4Nnw71zIzOcw1ojuquKG5' +
      'YMDDO5i9zD9muhM8K7iOuC48Izx9Nvc54L0xPJq+AD2bOF88x7jHvhc/czyZslS8ISh/PCs+cD94OIw8vDgXvCK6kzxrKOm0SUCaPH05yr5gMKI8JLx6OQ/A' +
      'pTzyvLk64bi5PN28MjkBP7082bUGLrW8wDwWwAOwMr3GPHaxXjx6uM48RDLcP9460zy/v/2vzTr3PHU8K7AhvP08xLeCwLstET22tG86XzwnPQknqbKDME89' +
      'rC5fQNS5Tz2dPQs4GTfCPbQ027yYPNs9zz5PvW26/j2wureg0zgLPqw9QLa2PT4+ybxpvE+8Tz7pu06y+Ld+Pki3pTjILIU+yjuZuKMqlz6jPGA9GbyoPlc4' +
      'kTaytuk+hr3dvKA2Nj/km/a+prtPP0U40jpjP5s/wTaXK5k6qj8cmgy4KrutPzI4P66mv+U/cL8ONqqp9T9ruik+jTYTQBy0kbuVMjJAjDjZPPc0QUAlt4c7' +
      'w7xwQJW5pLOlPXdAeD76MSK26EAiOx+9ODhjQY+zlS4Or5mjTK9hOfY3eKVGQHS+0rLMpnC9qLA+MQupFzYirvU5c6lCtwu5+ryOqUk52baxwCmqOjuovQg5' +
      'Q6rVQNmv17trquE6xrjiMnSrOjmnOk6+Kq+2P+m6ZT02r7o5DjtptduvxLVRrZYpJbB8upDASS8qsLi7ij3YN4ywa76AO8g9ybGqtrC0Izsusmc3dLzrvDay' +
      'TjLRsLM+nbKcPYg81z0Us2c5dEBpPUizDrrZuMO2brNou+42/DnQs7O06r3puAq09L1kvJy0DbTHPNgvorywtMqvxT3FrB+1ub0cvxA9fbVUvYot/7qGtYIp' +
      'Tbq4NK21xrHvOqe8rrXdtLdAn7vjtUe8X60uwAG2oLSyvZ86drZpsB+5REHntvi6uTyxv+i2nj4tPOa5YLdpP0K43DNqtwO05rxFwLO34kDTN4Ay5bfqOPC6' +
      'kDwAuO0hGThitRW4Dbm8QKc5Gbj4NP+ykr0tuJguEr9WPy+4dj32NnM4Pbj0N2rAU6xAuD88nicVPXS4FjbUsA24orjKvUA72K22uN46YD0sNhm52jgIPjK6' +
      'KLlPwCy5Zb0uub0/Wz/SMzu5n7xYuYs5SbmePCO4PbheuXS26zWqPYO5JTLfPIk8ibmeO/G/7b2buR64NDlFM7a5br5ftaI/ybn+NSY4aDjYuWA407x6s+u5' +
      'Pjmas0Q0ELoovys0JDhButc9NjkEwHm6XLoHOpu5hLokux6sYqytujA8pjdVsq66isBQu1g27Loqs/ywSDjyukW+Bj9Au/i6SbdAmzy8DLvTuY09qT8Wu4+5' +
      'Hr1LLhm7w7rau5u8dLu/wLw2+LZ8u9eyM7nMtaK7qjihOWBAw7uYPcy/ZjoTvCs4jjguvCO8fbb3ueA9MbyaPgC9m7hfvMc4xz4Xv3O8mTJUPCGof7wrvnC/' +
      'eLiMvLy4FzwiOpO8a6jpNEnAmrx9uco+YLCivCQ8erkPQKW88jy5uuE4ubzdPDK5Ab+9vNk1Bq61PMC8FkADMDI9xrx2MV68ejjOvESy3L/eutO8vz/9L826' +
      '97x1vCswITz9vMQ3gkC7rRG9tjRvul+8J70Jp6kyg7BPvayuX8DUOU+9nb0LuBm3wr20tNs8mLzbvc++Tz1tOv69sDq3INO4C76svUA2tr0+vsk8aTxPPE++' +
      '6TtOMvg3fr5IN6W4yKyFvsq7mTijqpe+o7xgvRk8qL5XuJG2sjbpvoY93Tygtja/5Bv2PqY7T79FuNK6Y7+bv8G2l6uZuqq/HBoMOCo7rb8yuD8upj/lv3A/' +
      'DraqKfW/azopvo22E8AcNJE7lbIywIy42bz3tEHAJTeHu8M8cMCVOaQzpb13wHi++rEiNujAIrsfPTi4Y8GPM5WuDi8=',
  },
  nsn4: {
    channels: 2,
    checksum: 0xa5a2723d,
    base64:
      'cxNptQQbA68PHWa4uR8DvL8kIj3kJuy/GylivhgsILoDLelAajDOMZ4wVELeMAGr/DCsNgcxwzoWMbu0XjEaOQoyYLgTMlE8YDItvMozDj5ANEq9lDS1KZ40' +
      'aLqgNAM06jQtsis1Gjc2NVM/ZjUfPWs1rLaWNb2+3jUMOfQ1hzpSNh08ezb+uLs2KLwEN/OsIjc2wCs3ti+ON+Q0yjcmtfw3PsEBOGdACzgCOGM4kb2YOCE+' +
      'ojiKuqI4zjm5OJo7wzjiPMk4aLHLOFu49TixIRw5FTI0OWy8TznnNXw5dziSOXO13Dn5vvI5aD9NOvY6XDprsIU6ayyXOq65njovQbE6ZDy2Ovi3wTqDOc86' +
      'FDTaOo497zpTvfA6azf3Oru7ejvEtPk77KkEPGLANzz5ODk80TU5PCY7RTzHMEk8kz5cPBa4YTxrvmw8xTx4PFi6iDz1wYk88rKOPI68njwnQAI9wjcaPeuf' +
      'OD3+OUA90DNkPSm1aj21PX09MTx/Pc24qz2Yu8U9eb3JPYi/zT0jQg4+EzgcPnutVj7aMow+hTquPuI+sT6nubQ+nEDGPre13T7cPDQ/a7xcP5IoYj9mN28/' +
      '1sC4P3K+D0DCOhNAZ7kuQC6zV0BjNGJAZT21QG+8z0AWQPRA/rf/QIk5KkGuKVxBIb/gQfc8MUIUumRCeTRzk2k1BJsDLw+dZji5nwM8v6QiveSm7D8bqWI+' +
      'GKwgOgOt6cBqsM6xnrBUwt6wASv8sKy2B7HDuhaxuzResRq5CrJgOBOyUbxgsi08yrMOvkC0Sj2UtLWpnrRoOqC0A7TqtC0yK7Uatza1U79mtR+9a7WsNpa1' +
      'vT7etQy59LWHulK2Hbx7tv44u7YoPAS38ywitzZAK7e2r4635LTKtyY1/Lc+QQG4Z8ALuAK4Y7iRPZi4Ib6iuIo6orjOubm4mrvDuOK8ybhoMcu4Wzj1uLGh' +
      'HLkVsjS5bDxPuee1fLl3uJK5czXcufk+8rlov0269rpcumswhbprrJe6rjmeui/BsbpkvLa6+DfBuoO5z7oUtNq6jr3vulM98Lprt/e6uzt6u8Q0+bvsKQS8' +
      'YkA3vPm4ObzRtTm8JrtFvMewSbyTvly8FjhhvGs+bLzFvHi8WDqIvPVBibzyMo68jjyevCfAAr3Ctxq96x84vf65QL3Qs2S9KTVqvbW9fb0xvH+9zTirvZg7' +
      'xb15Pcm9iD/NvSPCDr4TuBy+ey1WvtqyjL6Fuq6+4r6xvqc5tL6cwMa+tzXdvty8NL9rPFy/kqhiv2a3b7/WQLi/cj4PwMK6E8BnOS7ALjNXwGO0YsBlvbXA' +
      'bzzPwBbA9MD+N//Aibkqwa6pXMEhP+DB97wxwhQ6ZMJ5tA==',
  },
};
